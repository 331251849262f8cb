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

part() { # NAME COMMAND...: its last line, a line of JSON, into FOLDER/NAME.json
    local name=$1
    shift
    [ -s "$folder/$name.json" ] && return
    echo "== $name"
    if "$@" >"$folder/$name.log" 2>&1; then
        tail -1 "$folder/$name.log" >"$folder/$name.json"
    else
        failed=1
    fi
    tail -25 "$folder/$name.log"
}

tests() {
    "$python" -m pytest tests/gpu -q -p no:cacheprovider --durations=5 || return 1
}

counted() { # pytest's last line as JSON
    tests | tee /dev/stderr | "$python" -c '
import json, re, sys
said = sys.stdin.read().strip().splitlines()[-1]
print(json.dumps({word: int(number) for number, word in re.findall(r"(\d+) (\w+)", said) if word != "in"}))'
}

part tests counted
part cuda "$python" scripts/bench_cuda.py
part distill "$python" scripts/bench_gpu.py
"$python" - "$folder" <<'END'
import datetime, json, pathlib, sys, torch
parts = {path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
found = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "date": f"{datetime.date.today()}"}
pathlib.Path("docs/results/gpu.json").write_text(json.dumps(found | parts, indent=1) + "\n")
END
exit $failed
