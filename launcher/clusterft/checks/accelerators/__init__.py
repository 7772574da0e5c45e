"""Cards: what they are and how they are, and what the kernel says of them."""
