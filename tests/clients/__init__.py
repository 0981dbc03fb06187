"""Real clients against a live server; docs/COMPATIBILITY.md is written from what they show."""
