#!/usr/bin/env bash
# Submits a run to a Ray cluster, after the configuration was checked here.
#   clusters/submit.sh CONFIG [--set A.B=C …] [--out FOLDER] [--fresh]
# The cluster is that of RAY_ADDRESS, such as http://127.0.0.1:8265 (the default), behind
# `ray dashboard cluster.yaml` or an SSH tunnel. CONFIG must be in this directory, which goes to the
# cluster as the job's working directory, without what .gitignore and .rayignore name. Follows the
# log, and exits as the job does: 0 if it succeeded, 1 if it failed, 3 if it was stopped. The same
# command again goes on where a job was stopped.
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

donna config check "$config" ${settings[@]+"${settings[@]}"}    # bash 3.2: an empty array is unset
# The CLI's own word on the job is the last line, after all that the job wrote; it may be in colour.
ray job submit --working-dir . -- donna run "$config" "$@" |
    awk '{ print; fflush() } NF { last = $0 }
         END { gsub(/\033\[[0-9;]*m/, "", last); exit last ~ /Job .[^ ]+. was stopped$/ ? 3 : 0 }'
