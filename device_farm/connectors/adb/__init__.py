"""Android phones, over ADB.

`connector` is the entry. `condition` waits until a phone is cool (Android's thermal status), and
has its screen and performance mode; an `owner` keeps other programs from the phone meanwhile, and a
`process_name` says whether that one still runs.
`models` are the models kept on a phone, `programs` what measures there, `runners` how it is called
and read. `shell` runs commands and brings files over a `link`: a `wire` (TCP or `usb`, by
adb-shell with the key of `keys`), or through an adb `server`. `addresses` finds phones,
`paths` says what a path of a setting may be.
`set_up` is `device-farm phone`, with the `advice` on what to change.
"""
