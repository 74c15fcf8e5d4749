"""What works around Ray, each with the version it was seen on and a test."""
