# Makes /etc/default/ses of what ses --help says: each setting that has a variable, and its default.
BEGIN {
    print "# Settings of the service ses; see ses(8). Remove a # to set one, then: systemctl restart ses"
    print "# Secrets are better kept as credentials: systemctl edit ses, LoadCredential=password:/etc/ses/password"
}
/^[A-Z][a-z ]*:$/ { print "\n# ---- " substr($0, 1, length($0) - 1) " ----" }
/^  --.*\(OXSES_[A-Z_]*\)$/ {
    variable = $NF
    gsub(/[()]/, "", variable)
    next
}
variable {
    sub(/^ +/, "")
    value = ""
    if (match($0, /\(default: [^ ]*\)$/))
        value = substr($0, RSTART + 10, RLENGTH - 11)
    if (value == "all") # the one default that is no value
        value = ""
    print "\n# " $0 "\n#" variable "=" value
    variable = ""
}
