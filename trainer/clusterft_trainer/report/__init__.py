"""One self-contained page about a run, made of what lies in its directory. Standard library only.

It runs in the Python of any supervisor, without torch, pydantic, numpy or PIL (which is used to shrink pictures
where it can be imported). Whatever is missing, cut short or newer than this version is said on the page, which
comes nevertheless. Refuses the network, scripts that reading would need, and text from files that is not
escaped.
"""
