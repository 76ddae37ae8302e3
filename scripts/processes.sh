# Commands that a script starts and waits for; sourced by experiment.sh.
#
# A shell waits for a command in the foreground before it hears a signal, and one that is killed leaves the command
# behind. So a command that may take long is started in the background: signals that come to the script are sent on to
# it, and the script ends when it has ended. A lock keeps a second script out, also after this one was killed.

JOB= FILTER= STOPPED= LOCK=

# stop SIGNAL: what the script does with one.
stop() {
  STOPPED=$1 SIGNALLED=1
  case $JOB in
    '') leave ;;
    starting) ;;
    *) kill -s "$1" "$JOB" 2> /dev/null || true ;;
  esac
}

leave() {
  trap '' PIPE  # nobody may be there to read it
  fail_with $((128 + $(kill -l "$STOPPED"))) "interrupted by SIG$STOPPED: the same command goes on from where it stopped"
}

# job COMMAND...: run a program; returns its exit code. A signal ends the script when the program has ended.
job() { start '' "$@"; }

# logged LOG COMMAND...: all that it prints goes to a file.
logged() {
  local to
  exec {to}> "$1"
  start "$to" "${@:2}"
}

# shown LOG FUNCTION COMMAND...: all that it prints is added to a file, and shown as far as the function passes it on.
shown() {
  local to log=$1 filter=$2
  # Ctrl-C reaches these, too, and a terminal may be gone: nothing but the end of what they read ends them.
  exec {to}> >(trap '' HUP INT QUIT TERM USR1 USR2; tee -ap "$log" | "$filter")
  FILTER=$!
  start "$to" "${@:3}"
}

# start DESCRIPTOR COMMAND...: where its outputs go, or nothing for those of the script.
start() {
  local to=$1 code signal
  shift
  for signal in HUP INT QUIT TERM USR1 USR2; do
    # shellcheck disable=SC2064
    trap "stop $signal" "$signal"
  done
  JOB=starting
  # A process group of its own: of Ctrl-C it hears from this script, once, and not from the terminal as well.
  set -m
  if [ -n "$to" ]; then
    "$@" < /dev/null >&"$to" 2>&1 {to}>&- &
  else
    "$@" < /dev/null &
  fi
  JOB=$!
  set +m
  [ -z "$to" ] || exec {to}>&-
  [ -z "$LOCK" ] || echo "$JOB" > "$LOCKED/.lock"
  [ -z "$STOPPED" ] || stop "$STOPPED"
  code=0 SIGNALLED=1
  while [ -n "$SIGNALLED" ]; do  # a signal ends "wait", not yet the program
    code=0 SIGNALLED=
    { wait "$JOB" || code=$?; } 2> /dev/null  # without the shell's own "Terminated"
  done
  [ -z "$FILTER" ] || wait "$FILTER" || true
  JOB='' FILTER=''
  [ -z "$STOPPED" ] || leave
  return "$code"
}

# hold FOLDER: refuse to work where another script or what it has started is at work; until release, or the end of all
# that was started meanwhile.
hold() {
  LOCKED=$1
  exec {LOCK}>> "$1/.lock"
  if command -v flock > /dev/null; then
    # 99 is for a lock that is taken: a file system may have none.
    flock -n -E 99 "$LOCK" || [ $? != 99 ] || fail "process $(cat "$1/.lock") is at work in $1: wait for it, or end it"
  fi
  echo $$ > "$1/.lock"
}

release() {
  exec {LOCK}>&-
  LOCK=
}
