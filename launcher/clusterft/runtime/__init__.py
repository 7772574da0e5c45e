"""How one node's part of a plan is carried out: as plain processes (`process`)."""
