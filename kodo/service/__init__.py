"""The service: routes, the application, and `run_service`."""
