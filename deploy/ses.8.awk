# Makes the manual page from the output of ses --help, and that of ses COMMAND --help after each line "@COMMAND".
function roff(s) {
    gsub(/\\/, "\\e", s)
    gsub(/-/, "\\-", s)
    return s ~ /^[.']/ ? "\\&" s : s
}

BEGIN {
    printf ".TH SES 8 \"%s\" \"ses %s\" \"System Administration\"\n", date, roff(version)
    part = "about"
}

/^@/ {
    command = substr($0, 2)
    details = details ".SS ses " command "\n"
    part = "about"
    next
}

/^Usage: / { part = "usage" }
/^Each setting has / { part = "about" }
/^Example.*:$/ { part = "example"; next }
/^Exit codes: / { part = "exit"; sub(/^Exit codes: /, ""); sub(/^./, toupper(substr($0, 1, 1))) }
/^[A-Z][a-z ]*:$/ {
    part = $0 == "Commands:" || $0 == "Other:" ? "skip" : "flags"
    if (part == "flags")
        options = options ".SS " substr($0, 1, length($0) - 1) "\n"
    next
}
/^  --/ && command { part = "flags" }
/^$/ { if (part == "usage") part = "about"; next }

{
    line = $0
    sub(/^ +/, "", line)
    if (part == "about")
        out = roff(line) "\n"
    else if (part == "usage") {
        sub(/^Usage: /, "", line)
        split(line, halves, /   +/)
        out = (command ? ".PP\n" : "") ".B " roff(halves[1]) "\n" (halves[2] ? "(" roff(halves[2]) ")\n" : "")
        out = out (command ? ".PP\n" : ".br\n")
    } else if (part == "flags")
        out = $0 ~ /^  --/ ? ".TP\n.B " roff(line) "\n" : roff(line) "\n"
    else if (part == "example")
        out = ".PP\n.EX\n" roff(line) "\n.EE\n"
    else if (part == "exit")
        out = (command ? ".PP\nExit status: " : "") roff(line) "\n"
    else
        next
    if (command)
        details = details out
    else if (part == "flags")
        options = options out
    else
        text[part] = text[part] out
}

END {
    name = text["about"]
    sub(/:.*/, "", name)
    sub(/^SeS /, "", name)
    printf ".SH NAME\nses \\- %s\n", name
    printf ".SH SYNOPSIS\n%s.SH DESCRIPTION\n%s", text["usage"], text["about"]
    printf ".SH OPTIONS\n%s.SH COMMANDS\n%s", options, details
    printf ".SH EXAMPLE\n%s.SH EXIT STATUS\n%s", text["example"], text["exit"]
    printf ".SH SIGNALS\nSIGTERM and SIGINT ask SeS to stop; it ends within 10 seconds, with everything\n"
    printf "acknowledged on disk.\n"
    printf ".SH FILES\n.TP\n.I /etc/default/ses\nSettings of the service, as environment variables. As installed,\n"
    printf "only this host reaches SeS: see OXSES_ADDRESS there.\n"
    printf ".TP\n.I /var/lib/ses\nThe data directory of the service; the history is in ses.db.\n"
    printf ".SH SEE ALSO\n.BR prometheus (1),\n.BR alertmanager (1),\n.BR systemd.exec (5)\n"
}
