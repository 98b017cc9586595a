#!/usr/bin/env bash
# Measure a 2 B model on a Linux machine with an NVIDIA GPU and without a package index.
#
#   bash benchmarks/run_cuda.sh WHEELS OUT SECONDS [SHAPE]
#
# WHEELS is a folder with mlx, its CUDA backend, mlx-vlm, mlx-lm, ipykernel, ipywidgets, psutil and
# their dependencies (for mlx-vlm's server also fastapi and uvicorn; without these it is omitted).
# PyTorch, transformers and the nvidia-* packages must be installed. JSON files are written to OUT.
# The script ends after SECONDS at the latest, with the results until then. The model's folder is
# temporary, unless MODEL names a folder. NAMES selects the benchmarks (default "cell cancel"; run
# "engine" separately, as it has the model in four processes at once).
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
# Each benchmark writes its JSON at its end, and begins no run in the last seconds.
timeout --kill-after=5 "$(left)" "$python" -m benchmarks ${NAMES:-cell cancel} --model "$model" \
  --out "$out" --seconds $(($(left) - 25))
echo "done, $(left) s left"
