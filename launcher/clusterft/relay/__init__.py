"""What one node asks of another: the forced command of the relay keys, and the requests it answers. Pure text."""
