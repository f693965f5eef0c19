"""The experiment file: its schema, rules, paths and permitted changes."""
