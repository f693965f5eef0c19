"""Tables of image sets: the formats in which they are published, and the columns of any other table."""
