"""The HTTP server: application, middleware, admission of requests, connections, routes."""
