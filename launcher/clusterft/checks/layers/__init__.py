"""Doctor's checks, a module a layer: functions of an Examination. Some call what `up` and `train` ask too."""
