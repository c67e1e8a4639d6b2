"""Compares the files that the commands wrote, in data frames, tables and charts."""
