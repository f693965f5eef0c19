"""What is read from the database: answer, status, search summary, forecast."""
