#!/bin/sh
# Run the tests as processors of three kinds would, with two threads, and under glibc's heap checks.
#
#   tests/instruction_sets.sh [arguments of pytest]        by default the whole suite, then the heap checks
#
# PyTorch's own kernels and oneDNN choose their code by the processor; the pairs below choose it for them. A pair that
# the processor cannot run is left out. PYTEST names the command, by default "python -m pytest".
set -u
cd "$(dirname "$0")/.." || exit 1
pytest=${PYTEST:-python -m pytest}
failed=0

report() {  # what was run, exit code
    if [ "$2" -eq 0 ]; then echo "passed: $1"; else echo "FAILED: $1"; failed=1; fi
}

suite() {  # PyTorch's name of the set, oneDNN's, the processor's flag, threads
    if [ "$3" != any ] && ! grep -qw "$3" /proc/cpuinfo; then
        echo "left out: $1, which this processor has not"
        return
    fi
    sets=$1 onednn=$2 threads=$4
    shift 4
    ATEN_CPU_CAPABILITY=$sets ONEDNN_MAX_CPU_ISA=$onednn DARTS_BIO_TEST_THREADS=$threads $pytest "$@"
    report "$sets/$onednn, $threads thread(s)" $?
}

suite default SSE41 any 1 "$@"
suite avx2 AVX2 avx2 1 "$@"
suite avx512 AVX512_CORE avx512bw 1 "$@"
# Workers of two threads each would wait for each other.
DARTS_BIO_TEST_THREADS=2 $pytest -n 1 "$@"
report "the processor's own, 2 threads" $?

# In one process, whose heap is checked at each call; it ends at the first damage.
LD_PRELOAD=libc_malloc_debug.so.0 GLIBC_TUNABLES=glibc.malloc.check=3 $pytest -n 0 \
    tests/test_pointwise.py tests/test_networks.py tests/test_mixed.py tests/test_spaces.py tests/test_nb201.py \
    tests/test_rules.py tests/test_rule_family.py tests/test_convert.py
report "heap checks over networks, spaces and rules" $?
exit $failed
