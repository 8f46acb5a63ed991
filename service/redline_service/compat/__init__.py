"""The requests that RL loops send today, read into items of the wire, and the replies that they wait for."""
