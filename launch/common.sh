# shellcheck shell=bash disable=SC2034
# Sourced by the launchers; written for bash 3.2 and later (macOS has 3.2).
#
# A launcher sets USAGE and OPTIONS, calls `parse "$@"`, and runs commands through `run` and `ask`.
# With --dry-run, these print the command instead of running it.
#
# OPTIONS is a table with one option per line: name|check|default|help. An option is given as
# --name=value or as the environment variable MMRL_NAME. Its value is stored in OPT_NAME.

readonly PREEMPTED=75 # EX_TEMPFAIL: training has saved a checkpoint and can be resumed

DRY_RUN=false
TRAIN_ARGUMENTS=() # arguments after --, for mmrl.main

fail() { # MESSAGE: prints one line and exits with status 2, as the Python commands do
  printf 'error: %s\n' "$1" >&2
  exit 2
}

say() {
  printf '%s\n' "$1" >&2
}

quote() { # WORD...: prints the words in one line, quoted for a shell
  local word separator=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
        ;;
    esac
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

show() {
  quote "$@"
  printf '\n'
}

run() { # COMMAND...
  if "$DRY_RUN"; then
    show "$@"
  else
    "$@"
  fi
}

ask() { # ANSWER COMMAND...: prints the output of a command; with --dry-run, ANSWER
  local answer=$1
  shift
  if "$DRY_RUN"; then
    show "$@" >&3
    printf '%s\n' "$answer"
  else
    "$@"
  fi
}

home() { # SCRIPT: prints the path of the repository, relative if that of the script is relative
  local folder
  folder=$(dirname "$1")
  case $folder in
    . | */. | .. | */..) printf '%s/..' "$folder" ;;
    *) dirname "$folder" ;;
  esac
}

variable() { # PREFIX NAME: prints PREFIX_NAME, in upper case
  printf '%s_%s' "$1" "$2" | tr 'a-z-' 'A-Z_'
}

help_text() {
  printf '%s\n\nOptions; each can also be set by an environment variable (MMRL_DRY_RUN for --dry-run):\n' "$USAGE"
  local name check default text
  while IFS='|' read -r _ name check default text; do
    printf '  --%-22s %s%s\n' "$name=..." "$text" "${default:+ [$default]}"
  done <<<"$TABLE"
  printf '  --%-22s %s\n' dry-run 'print the commands, one per line, and run nothing' \
    help 'show this text'
}

option_names() {
  local name rest
  while IFS='|' read -r _ name rest; do
    printf -- '--%s ' "$name"
  done <<<"$TABLE"
}

parse_command() { # COMMANDS ARGUMENT...: parses a command and options; sets COMMAND
  local commands=$1
  shift
  COMMAND=${1:-}
  case " $commands " in
    *" $COMMAND "*) [ -z "$COMMAND" ] || shift ;;
    *) COMMAND='' ;;
  esac
  if [ -z "$COMMAND" ]; then
    case ${1:-} in
      --help | -h) ;;
      '' | --*) fail "missing command; the commands: $commands" ;;
      *) fail "unknown command $(quote "$1"); the commands: $commands" ;;
    esac
  fi
  parse "$@"
}

parse() { # ARGUMENT...: sets OPT_*, DRY_RUN and TRAIN_ARGUMENTS; fails on invalid arguments
  local argument key name check default given value
  case ${MMRL_DRY_RUN:-false} in
    true | false) DRY_RUN=${MMRL_DRY_RUN:-false} ;;
    *) fail "MMRL_DRY_RUN=$MMRL_DRY_RUN: expected true or false" ;;
  esac
  # Adds the name in upper case to each line: KEY|name|check|default|help.
  TABLE=$(awk -F '|' 'NF { key = toupper($1); gsub("-", "_", key); print key "|" $0 }' <<<"$OPTIONS")
  while IFS='|' read -r key name check default _; do
    given=MMRL_$key
    printf -v "OPT_$key" '%s' "${!given:-$default}"
  done <<<"$TABLE"
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --help | -h)
        help_text
        exit 0
        ;;
      --)
        TRAIN_ARGUMENTS=("$@")
        break
        ;;
      --dry-run) DRY_RUN=true ;;
      --*=*) assign "${argument%%=*}" "${argument#*=}" ;;
      --*) assign "$argument" '' ;;
      *) fail "unexpected argument $(quote "$argument"); options are written --name=value" ;;
    esac
  done
  while IFS='|' read -r key name check _; do
    value=OPT_$key
    [ -z "${!value}" ] || validate "$name" "$check" "${!value}"
  done <<<"$TABLE"
  refuse_secrets
  # `ask` prints commands on descriptor 3, because its stdout is captured. It is open only in a dry
  # run: an open copy in a background process would keep an ssh connection from closing.
  ! "$DRY_RUN" || exec 3>&1
}

assign() { # --NAME VALUE: sets an option; accepts underscores in names, as in flags of mmrl.main
  local given=${1#--} key name check
  given=${given//_/-}
  while IFS='|' read -r key name check _; do
    [ "$name" = "$given" ] || continue
    if [ -z "$2" ]; then
      [ "$check" = boolean ] || fail "$1 has no value; write $1=..."
      set -- "$1" true
    fi
    printf -v "OPT_$key" '%s' "$2"
    return
  done <<<"$TABLE"
  fail "unknown option $(quote "$1"); the options: $(option_names)--dry-run --help"
}

validate() { # NAME CHECK VALUE
  local pattern expected
  case $2 in
    boolean) pattern='(true|false)' expected='true or false' ;;
    count) pattern='[1-9][0-9]{0,6}' expected='a whole number from 1' ;;
    whole) pattern='(0|[1-9][0-9]{0,6})' expected='a whole number from 0' ;;
    port) pattern='[1-9][0-9]{0,4}' expected='a port from 1 to 65535' ;;
    name)
      pattern='[a-z]([a-z0-9-]{0,38}[a-z0-9])?'
      expected='at most 40 lower-case letters, digits and hyphens, a letter first'
      ;;
    word) pattern='[A-Za-z0-9][A-Za-z0-9_.:/@%+-]*' expected='one word without spaces' ;;
    words) pattern='[A-Za-z0-9/][A-Za-z0-9_.:/@%+,-]*' expected='words separated by commas' ;;
    path) pattern='[A-Za-z0-9_./~][A-Za-z0-9_./:@%+=~ -]*' expected='a path' ;;
    config) pattern='[A-Za-z0-9_./-]+\.py(:.+)?' expected='FILE.py or FILE.py:VARIANT' ;;
    bucket)
      pattern='gs://[a-z0-9][a-z0-9._-]+/[A-Za-z0-9_./=-]+'
      expected='gs://BUCKET/FOLDER'
      ;;
    topology) pattern='[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?' expected='for example 4x4 or 4x4x4' ;;
    time) pattern='([0-9]+-)?[0-9]{1,2}(:[0-9]{2}){0,2}' expected='[DAYS-]HOURS:MINUTES:SECONDS' ;;
    secrets)
      pattern='[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+(,[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+)*'
      expected='VARIABLE=SECRET_ID,..., with ids of Secret Manager instead of values'
      ;;
    *) # choices
      pattern="(${2//\//|})" expected="one of ${2//\//, }"
      ;;
  esac
  [[ $3 != *$'\n'* && $3 =~ ^${pattern}$ ]] || fail "--$1=$(given "$1" "$3"): expected $expected"
  if [ "$2" = port ] && [ "$3" -gt 65535 ]; then
    fail "--$1=$3: expected $expected"
  fi
}

given() { # NAME VALUE: prints the value in one line for an error message, except secrets
  case $1 in
    secrets) printf '(not shown)' ;;
    *) printf '%s' "$2" | tr '\n' ' ' ;;
  esac
}

need() { # NAME...: fails if one of the options has no value
  local name value
  for name in "$@"; do
    value=$(variable OPT "$name")
    [ -n "${!value}" ] || fail "missing --$name=... (or $(variable MMRL "$name")); see --help"
  done
}

refuse_secrets() { # command lines are visible to all users of a machine and appear in logs
  local argument key
  for argument in ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"}; do
    key=$(printf '%s' "${argument%%=*}" | tr '[:upper:]' '[:lower:]')
    if [[ $key =~ (^|[._-])(token|password|passwd|secret|credentials?|(api|access|private)_?key)$ ]]; then
      fail "${argument%%=*}: secrets do not belong on a command line; see 'Secrets' in launch/README.md"
    fi
    case $argument in
      --config=* | --workdir=*)
        fail "${argument%%=*} after --; it is an option of the launcher, give it before --"
        ;;
      --*) ;;
      *) fail "$(quote "$argument") after --; expected flags of mmrl.main, --name=value" ;;
    esac
  done
}

check_private() { # FILE: fails unless only its owner can read it
  [ -f "$1" ] || fail "--env-file=$1: expected a file with lines NAME=VALUE"
  [ -z "$(find "$1" -perm -040 -o -perm -004)" ] ||
    fail "--env-file=$1: other users can read it; expected chmod 600"
}

load_environment() { # FILE: exports its lines, without passing values on a command line
  local line number=0
  check_private "$1"
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    case $line in '' | '#'*) continue ;; esac
    [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env-file=$1: line $number is not NAME=VALUE"
    export "${line?}"
  done <"$1"
}

forward() { # COMMAND...: runs it, passes SIGTERM and SIGINT on as SIGTERM, returns its status
  local child status=0
  "$@" </dev/null &
  child=$!
  # shellcheck disable=SC2064 # expands the process id now
  trap "kill -TERM $child 2>/dev/null || true" TERM INT
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break # a trapped signal also ends `wait`
  done
  # An interrupted `wait` returns the status of the signal; another `wait` returns that of the child.
  if [ "$status" -gt 128 ]; then
    status=0
    wait "$child" 2>/dev/null || status=$?
  fi
  trap - TERM INT
  return "$status"
}
