"""What the logs of a run that failed say of its first cause. Pure: lines in, one Diagnosis out.

`lines` reads one line of whoever wrote it, `known` has the texts, `hearing` keeps what matters of many lines in
bounded memory, `cause` ranks it. Refuses to open a file, to ask a node or a clock.
"""
