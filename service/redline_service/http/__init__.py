"""The HTTP server: application, middleware, admission, connections, routes."""
