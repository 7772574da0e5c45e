"""Which pictures there are: sources read once into an index that every worker maps into its memory."""
