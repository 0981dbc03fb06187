"""The page for people: its files, and the routes that give them to a browser."""
