"""Tests of the client side: the clients, their calls and connections, and files of rows."""
