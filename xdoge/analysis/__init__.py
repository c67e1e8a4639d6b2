"""Read what the commands wrote, and set it side by side: frames, tables and charts."""
