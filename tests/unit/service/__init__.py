"""The service without a transport."""
