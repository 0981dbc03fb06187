"""The page for people in a real Chromium; `make page` runs these tests."""
