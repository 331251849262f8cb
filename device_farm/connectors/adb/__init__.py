"""Android phones, over ADB.

`connector` is the entry. `condition` has the temperature at which a phone is not measured, and the
screen and performance mode; `models` are the models kept on a phone, `runners` the programs that
measure there. `shell` runs commands and brings files over a `link`, which is a `wire` (TCP, or `usb`,
by adb-shell with the key of `keys`) or goes through an adb `server`; `addresses` finds phones.
"""
