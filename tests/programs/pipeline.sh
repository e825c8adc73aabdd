# A shell with pipelines of five programs and more, process and command substitution, background jobs, a coprocess and a FIFO: the
# results are compared with those of the same programs run one after the other. Rounds until DIR/stop exists.
#
# usage: bash pipeline.sh DIR
set -u -o pipefail
dir=$1
export LC_ALL=C TMPDIR=$dir
fail() { echo "FAIL pipeline.sh: $*" | tee -a "$dir/result" >&2; exit 1; }
need() { [ "$1" = "$2" ] || fail "$3: '$1', wanted '$2'"; }

# One after the other, through files.
seq 1 30000 > "$dir/1"; tr 0-9 j-s < "$dir/1" > "$dir/2"; sort -r "$dir/2" > "$dir/3"; grep -v kk "$dir/3" > "$dir/4"
wanted=$(md5sum < "$dir/4"); lines=$(wc -l < "$dir/4")
need "$lines" 28269 "lines"
mkfifo "$dir/fifo"
coproc BACK { while read -r line; do echo "$line" | rev; done; }
back=$BACK_PID
traps=0
trap 'traps=$((traps + 1))' USR1

round=0
while [ ! -e "$dir/stop" ]; do
  round=$((round + 1))
  got=$(seq 1 30000 | tr 0-9 j-s | sort -r | grep -v kk | md5sum) || fail "a program of the pipeline ended with $?"
  need "$got" "$wanted" "the pipeline"
  seq 1 30000 | gzip -c | gunzip | tr 0-9 j-s | sort -r | tee >(wc -l > "$dir/counted") | grep -v kk | md5sum > "$dir/sum" \
    || fail "the second pipeline: ${PIPESTATUS[*]}"
  need "$(cat "$dir/sum")" "$wanted" "the second pipeline"
  cmp <(sort "$dir/2") <(sort -u "$dir/3" | cat) || fail "process substitution"
  (seq 1 "$round" > "$dir/fifo") & writer=$!
  read_back=$(tail -n 1 < "$dir/fifo")
  wait "$writer" || fail "the writer of the FIFO ended with $?"
  need "$read_back" "$round" "the FIFO"
  echo "round$round" >&"${BACK[1]}"; read -r turned <&"${BACK[0]}"
  need "$(echo "$turned" | rev)" "round$round" "the coprocess"
  (exit 7) & wait $!; need $? 7 "a background job's status"
  kill -USR1 $$; need "$traps" "$round" "traps"
  false | true | true; need "$?/${PIPESTATUS[*]}" "1/1 0 0" "statuses"
  printf '%-20d\n' "$round" 1<>"$dir/progress"
done
exec {BACK[1]}>&-
wait "$back" || fail "the coprocess ended with $?"
[ "$round" -gt 0 ] || fail "no rounds"
echo ok > "$dir/result"
