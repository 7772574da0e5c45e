"""The ways between nodes: addresses, who answers there, ports, firewalls, speed, the meeting of ranks."""
