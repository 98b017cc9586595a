#!/usr/bin/env bash
# Measure a 2 B model on a Linux machine with an NVIDIA GPU that reaches no package index.
#
#   bash benchmarks/run_cuda.sh WHEELS OUT SECONDS [SHAPE]
#
# WHEELS holds mlx, its CUDA backend, mlx-vlm, mlx-lm, ipykernel, ipywidgets, psutil and what they
# need (mlx-vlm's server: fastapi and uvicorn; without these it is left out) beyond the PyTorch, transformers and nvidia-* packages that are there. JSON files go to OUT. It
# ends after SECONDS at the latest; what was measured until then is written. The model's folder is
# a temporary one, unless MODEL names one to keep. NAMES chooses the benchmarks ("cell cancel";
# "engine" keeps the model in four processes at once, and wants a run of its own).
set -euo pipefail
wheels=$1 out=$2 seconds=$3 shape=${4:-2b}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
end=$(($(date +%s) + seconds))
left() { echo $((end - $(date +%s))); }

"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
  --ignore-installed --root-user-action=ignore "$wheels"/*.whl
echo "installed, $(left) s left"
site=$("$python" -c 'import site; print(site.getsitepackages()[0])')
libraries=$(find "$site/nvidia" -name lib -type d 2>/dev/null | tr '\n' ':' || true)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-}
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

if [ -n "${MODEL:-}" ]; then
  model=$MODEL
else
  model=$(mktemp -d)/$shape
  trap 'rm -rf "$(dirname "$model")"' EXIT
fi
"$python" -m benchmarks.random_model "$shape" "$model"
echo "built, $(left) s left"
# Each benchmark writes its JSON when it ends, and begins no run in the last seconds.
timeout --kill-after=5 "$(left)" "$python" -m benchmarks ${NAMES:-cell cancel} --model "$model" \
  --out "$out" --seconds $(($(left) - 25))
echo "done, $(left) s left"
