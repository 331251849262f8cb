"""One run: its folder, its lock, its Ray session, and how a step is computed or reused.

Entry: `Run` in `run.py`, with `Run.step`. `folder.py` says where a run is kept, `ownership.py`
whose a folder is and what `--fresh` moves aside, `shared_folder.py` has the folder that every node
must see, `mirror.py` a run folder's copy at a URL, `manifest.py` whether another command has
written that since, `lease.py` which command uses it, `copies.py` the working copies in the user's
cache, `session.py` joins or starts Ray, `progress.py` shows a long step, `doubts.py` says what
makes a step's figures doubtful.

With `cluster.storage` at a URL, workers store blocks and networks there, and the run folder of the
command is a working copy that is pushed after each step; its manifest is written last.
"""
