#!/usr/bin/env bash
# Submits a run to a Ray cluster, after the configuration was checked here.
#   clusters/submit.sh CONFIG [--set A.B=C …] [--out FOLDER] [--fresh]
# The cluster is that of RAY_ADDRESS, such as http://127.0.0.1:8265 (the default), behind
# `ray dashboard cluster.yaml` or an SSH tunnel. CONFIG must be in this directory, of which the
# cluster gets Python and YAML files, linked ones too, as the job's working directory, and nothing
# else: no file whose name is hidden or speaks of secrets (those are told), no linked folder (told,
# too), nothing in folders of environments, data or results, nothing that .gitignore names, and no
# donna_ray and device_farm: those that the nodes have installed are what runs. Follows the log, and
# exits as the job does: 0 if it succeeded, 1 if it failed, 3 if it was stopped. The same command
# again goes on where a job was stopped.
set -euo pipefail
config=${1:?usage: clusters/submit.sh CONFIG [options of donna run]}
shift

token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [[ -n ${RAY_AUTH_TOKEN:-} || -f $token ]]; then export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}; fi

settings=()
previous=
for word in "$@"; do
    if [[ $word == --set=* ]]; then settings+=("$word"); fi
    if [[ $previous == --set ]]; then settings+=("--set=$word"); fi
    previous=$word
done

# What lies on the nodes alone, weights and records, the job checks.
RAY_ADDRESS=${RAY_ADDRESS:-http://127.0.0.1:8265} donna config check "$config" ${settings[@]+"${settings[@]}"}    # bash 3.2: an empty array is unset

sent=$(mktemp -d)
trap 'rm -rf "$sent"' EXIT
# A job's working directory comes first on its path: packages of this project would hide the nodes' own.
never=(-name '.?*' -o -name __pycache__ -o -name site-packages -o -name node_modules
    -o -path ./data -o -path ./datasets -o -path ./docs -o -path ./runs -o -path ./tests
    -o -path ./donna_ray -o -path ./device_farm)
if [[ -d donna_ray && -d device_farm ]]; then never+=(-o -path ./scripts); fi    # a clone
secret=(-iname '*secret*' -o -iname '*credential*' -o -iname '*password*')
kinds=(-name '*.py' -o -name '*.yaml' -o -name '*.yml')

left=$(find . \( "${never[@]}" \) -prune -o \( "${secret[@]}" \) \( -type d -o "${kinds[@]}" \) -print -prune)
if [[ -n $left ]]; then
    printf 'Not sent, for names with secret, credential or password stay here; rename what the job needs:\n%s\n' \
        "$left" >&2
fi
links=$(find . \( "${never[@]}" -o "${secret[@]}" \) -prune -o -type l \
    \( -exec test -d {} \; -o \( "${kinds[@]}" \) ! -exec test -e {} \; \) -print)
if [[ -n $links ]]; then
    printf 'Not sent, for links to folders, and to what is not there, stay here; copy what the job needs:\n%s\n' \
        "$links" >&2
fi
# Linked files are sent as files. Not `-xtype`, which macOS has not.
find . \( "${never[@]}" -o "${secret[@]}" \) -prune -o \( "${kinds[@]}" \) \
    \( -type f -o -type l -exec test -f {} \; \) -print0 |
    tar -chf - --null -T - | tar -xf - -C "$sent"
if [[ ! -f $sent/$config ]]; then
    echo "CONFIG must be among what is sent, a .yaml file in this directory (not in donna_ray or" \
        "device_farm: copy it from there), but is $config." >&2
    exit 2
fi
if [[ -f .gitignore ]]; then cp .gitignore "$sent"; fi    # which Ray heeds

# The CLI's own word on the job is the last line, after all that the job wrote; it may be in colour.
ray job submit --working-dir "$sent" -- donna run "$config" "$@" |
    awk '{ print; fflush() } NF { last = $0 }
         END { gsub(/\033\[[0-9;]*m/, "", last); exit last ~ /Job .[^ ]+. was stopped$/ ? 3 : 0 }'
