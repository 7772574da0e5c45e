"""Everything a person reads: plans, findings, errors, the live view. Views are values; printing is a line each."""
