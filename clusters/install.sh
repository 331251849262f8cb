#!/usr/bin/env bash
# Makes the environment of a node, ~/donna, for the package that lies beside; setup_commands call it:
#   bash ~/donna-ray/clusters/install.sh INDEX [PACKAGE …]
# INDEX is that of torch's wheels (cu126 has code for V100) or pypi; PACKAGEs come in addition. The
# other versions are those of requirements.txt, on x86-64 by their hashes. The package itself is used
# where it lies, so that what `ray up` brings is what runs. Where nothing but that has changed since the
# last time, as ~/donna/.installed tells, nothing is installed.
set -euo pipefail
index=$1
shift
ours=$(cd "$(dirname "$0")/.." && pwd)
versions=$ours/clusters/requirements.txt
state=$(cat "$0" "$versions" <(echo "$ours" "$index" "$@") | sha256sum)
if [[ $state == "$(cat ~/donna/.installed 2>/dev/null)" ]]; then exit; fi

rm -f ~/donna/.installed
test -x ~/donna/bin/pip || python3.11 -m venv ~/donna
gpus= other=onnxruntime-gpu # ONNX Runtime for GPUs: 1.26 is the last for CUDA 12, PyPI's torch is for 13
if [[ $index == cu12* ]]; then gpus=1.26.0; elif nvidia-smi -L &>/dev/null; then gpus=1.31.1; fi
if [[ $gpus ]]; then other=onnxruntime; fi
~/donna/bin/pip uninstall --yes $other    # both have the same files
if [[ $(uname -m) == x86_64 ]]; then cat "$versions"; else sed 's/ --hash.*//' "$versions"; fi |
    if [[ $gpus ]]; then grep -v '^onnxruntime=='; else cat; fi > ~/donna/versions.txt
torch=(torch==2.14.1 torchvision==0.29.1)
if [[ $index != pypi ]]; then torch+=(--index-url "https://download.pytorch.org/whl/$index"); fi
~/donna/bin/pip install --no-deps -r ~/donna/versions.txt
~/donna/bin/pip install "${torch[@]}"
if [[ $gpus ]]; then ~/donna/bin/pip install --no-deps "onnxruntime-gpu==$gpus"; fi
if (($#)); then ~/donna/bin/pip install "$@"; fi

~/donna/bin/pip uninstall --yes donna-ray    # a copy in the environment would come first
echo "$ours" > ~/donna/lib/python3.11/site-packages/donna-ray.pth
for command in donna:donna_ray.cli.main device-farm:device_farm.cli; do
    program=~/donna/bin/${command%:*}
    printf '#!%s\nimport sys\nfrom %s import main\n\nif __name__ == "__main__":\n    sys.exit(main())\n' \
        ~/donna/bin/python "${command#*:}" > "$program"
    chmod +x "$program"
done
echo "$state" > ~/donna/.installed
