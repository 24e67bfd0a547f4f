# Makes /etc/default/ses of what ses --help says: each setting that has a variable, and its default;
# the address alone is set, so that nobody is let in by default.
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
    print "\n# " $0
    if (variable == "OXSES_ADDRESS") {
        print "# As installed, only this host can reach SeS. To let others in, set another address, or none for all, and"
        print "# with it who may send and read (OXSES_AUTHMODE and what it needs) and TLS (OXSES_TLS_CERT and"
        print "# OXSES_TLS_KEY); or keep it, and put a proxy with TLS in front of SeS. ses.socket has its own address."
        print variable "=127.0.0.1"
    } else
        print "#" variable "=" value
    variable = ""
}
