# Completion of ses in bash: commands and flags are those that its own --help tells.
_ses() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command= help words
    [[ $COMP_CWORD -gt 1 && ${COMP_WORDS[1]} != -* ]] && command=${COMP_WORDS[1]}
    help=$("$1" ${command:+"$command"} --help 2>/dev/null) || return
    case $(sed -n "s/^  $previous \([A-Z]*\)\( .*\)\?$/\1/p" <<<"$help") in
    FILE) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    DIR) mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    BOOL) mapfile -t COMPREPLY < <(compgen -W "true false" -- "$current") ;;
    LEVEL) mapfile -t COMPREPLY < <(compgen -W "Panic Fatal Error Warn Info Debug Trace" -- "$current") ;;
    ?*) COMPREPLY=() ;;
    *)
        words=$(sed -n 's/^  \(--[a-z-]*\).*/\1/p' <<<"$help")
        [[ $COMP_CWORD -eq 1 ]] && words+=" $(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\).*/\1/p' <<<"$help")"
        mapfile -t COMPREPLY < <(compgen -W "$words --help --version" -- "$current")
        # What is no flag of ses backup, restore and import.
        grep -q '^Usage: .* \[\?FILE\]\?$' <<<"$help" && mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$current")
        ;;
    esac
}
complete -o filenames -F _ses ses
