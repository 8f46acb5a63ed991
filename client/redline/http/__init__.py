"""The HTTP layer of both clients: requests, answer checks, retries, deadlines, proxies."""
