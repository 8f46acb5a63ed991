"""The HTTP layer of both clients: requests, answers and their checks, retries, deadlines, proxies."""
