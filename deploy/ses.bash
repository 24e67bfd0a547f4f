# Bash completion of ses; commands and flags come from its --help.
_ses() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command= help words= commands type= flag value
    # Bash splits --flag=value into words.
    if [[ $current == "=" ]]; then
        current=
    elif [[ $previous == "=" ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    [[ $COMP_CWORD -gt 1 && ${COMP_WORDS[1]} != -* ]] && command=${COMP_WORDS[1]}
    commands=$("$1" --help 2>/dev/null | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\( [a-z]\+\)\?\)  .*/\1/p') || return
    # A command of two words, such as note add: the second word completes the first.
    if grep -q "^$command " <<<"$commands" && [[ -n $command ]]; then
        if [[ $COMP_CWORD -eq 2 ]]; then
            words=$(sed -n "s/^$command //p" <<<"$commands")
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
            return
        fi
        command+=" ${COMP_WORDS[2]}"
    fi
    commands=$(sed 's/ .*//' <<<"$commands" | sort -u)
    # shellcheck disable=SC2086 # a command may be two words
    help=$("$1" $command --help 2>/dev/null) || return
    while read -r flag value _; do
        [[ $flag == --* && $flag == "$previous" ]] && type=$value
    done <<<"$help"
    # A BOOL flag needs no value.
    [[ $type == BOOL && $current == -* ]] && type=
    [[ $previous == *[\<\>] ]] && type=FILE
    case $type in
    FILE) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    DIR) mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    ?*)
        case $previous in
        --auth-mode | --onix-auth-mode) words="none basic oidc" ;;
        --log-level) words="Panic Fatal Error Warn Info Debug Trace" ;;
        --log-format) words="text json" ;;
        --format) words="table json csv"; [[ $command == report ]] && words+=" html" ;;
        --order) words="asc desc" ;;
        --kind) words="maintenance excluded correction comment retired" ;;
        *) [[ $type == BOOL ]] && words="true false" ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        ;;
    *)
        words="$(sed -n 's/^  \(--[a-z-]*\).*/\1/p' <<<"$help") --help --version"
        [[ $COMP_CWORD -eq 1 ]] && words+=" $commands help"
        [[ $command == help ]] && words=$commands
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        # The file of ses backup, restore and import.
        grep -q '^Usage: .* \[\?FILE\]\?$' <<<"$help" && mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$current")
        ;;
    esac
}
complete -o filenames -F _ses ses
