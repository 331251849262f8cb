#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU can show, in under 8 minutes on one card with 16 cores.
#   scripts/gpu_day.sh [FOLDER]     parts that are in FOLDER (build/gpu) already are not done again
# Leaves docs/results/gpu.json with the card's name. PYTHON says which Python; python3 otherwise.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/gpu}
python=${PYTHON:-python3}
mkdir -p "$folder"
failed=0

part() { # NAME COMMAND...: its last line into FOLDER/NAME.json, or NAME.failed.json if it failed
    local name=$1 ending=json
    shift
    [ -s "$folder/$name.json" ] && return
    rm -f "$folder/$name.failed.json"
    echo "== $name"
    "$@" >"$folder/$name.log" 2>&1 || { failed=1; ending=failed.json; }
    tail -1 "$folder/$name.log" >"$folder/$name.$ending"
    tail -25 "$folder/$name.log"
}

counted() { # what pytest said, and its last line as JSON
    "$python" -m pytest tests/gpu -q -p no:cacheprovider --durations=5 >"$folder/pytest.txt" 2>&1
    local status=$?
    cat "$folder/pytest.txt"
    "$python" - "$folder/pytest.txt" $status <<'END'
import json, pathlib, re, sys
said = pathlib.Path(sys.argv[1]).read_text().strip().splitlines()[-1]
found = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", said) if word != "in"}
print(json.dumps(found | {"status": int(sys.argv[2])}))
END
    return $status
}

part tests counted
part cuda "$python" scripts/bench_cuda.py
part distill "$python" scripts/bench_gpu.py
"$python" - "$folder" <<'END'
import datetime, json, pathlib, sys, torch
def told(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        return {"failed": path.read_text().strip()}

parts = {path.name.split(".")[0]: told(path) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
found = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "date": f"{datetime.date.today()}"}
pathlib.Path("docs/results/gpu.json").write_text(json.dumps(found | parts, indent=1) + "\n")
END
exit $failed
