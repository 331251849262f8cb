"""Android phones, over ADB.

`connector` is the entry. `condition` has the temperature above which a phone is not measured, its
screen and performance mode; `models` are the models kept on a phone, `runners` the programs that
measure there. `shell` runs commands and brings files over a `link`: a `wire` (TCP or `usb`, by
adb-shell with the key of `keys`), or through an adb `server`. `addresses` finds phones.
"""
