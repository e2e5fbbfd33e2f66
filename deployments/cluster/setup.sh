#!/usr/bin/env bash
# What every node runs before Ray starts, as often as you like: a virtual environment in ~/rayapp/venv with the wheel that
# lies in ~/rayapp/dist. A wheel that is installed already is left alone. `cluster.yaml` and `onprem.yaml` call it.
set -euo pipefail
cd ~/rayapp
chmod 600 ~/.ray/auth_token # whoever reads it commands the cluster

[ -x venv/bin/python ] || python3 -m venv venv
wheel=$(ls -t dist/rayapp-*.whl | head -1)
if ! cmp --silent "$wheel" venv/rayapp.whl; then
  # PyPI's torch brings gigabytes of CUDA; a node without a GPU takes the CPU build.
  if ! command -v nvidia-smi > /dev/null; then
    venv/bin/pip install --quiet -c dist/constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
  fi
  venv/bin/pip uninstall --quiet --yes rayapp # a module that the new wheel lacks must not stay
  venv/bin/pip install --quiet -c dist/constraints.txt "$wheel[redis]"
  cp "$wheel" venv/rayapp.whl
fi
command -v venv/bin/rayapp-haproxy > /dev/null # without it HAProxy's own pages would be open

# Login shells, those of `ray exec` and `ray attach` among them, find the programs and the token.
echo 'export PATH=$HOME/rayapp/venv/bin:$PATH RAY_AUTH_MODE=token' > env
for file in ~/.profile ~/.bashrc; do
  grep --quiet --no-messages rayapp/env "$file" || sed --in-place '1i . ~/rayapp/env' "$file" 2> /dev/null || echo '. ~/rayapp/env' >> "$file"
done
