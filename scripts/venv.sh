# Sourced by the scripts beside it: makes .venv once and activates it. MUSAE_PYTHON names another interpreter.
if [ ! -x .venv/bin/python ]; then
  echo "Making .venv"
  "${MUSAE_PYTHON:-python3}" -c 'import sys; sys.exit("musae_jax needs Python 3.11 or newer; set MUSAE_PYTHON to one" if sys.version_info < (3, 11) else 0)'
  "${MUSAE_PYTHON:-python3}" -m venv .venv
fi
. .venv/bin/activate
