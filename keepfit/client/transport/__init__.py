"""HTTP/1.1 to one gateway: addresses, requests and responses, and the connections of both clients."""
