# Makes /etc/default/ses from the output of ses --help: each setting that has a variable, commented out with its
# default. Only the address is set, so that no other host has access by default.
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
    if (value == "all") # the only default that is not a value
        value = ""
    print "\n# " $0
    if (variable == "OXSES_ADDRESS") {
        print "# As installed, only this host can reach SeS. To let other hosts in, set another address, or none to listen"
        print "# on all, and also set credentials (OXSES_AUTHMODE and what it needs) and TLS (OXSES_TLS_CERT and"
        print "# OXSES_TLS_KEY). Or keep it, and put a proxy with TLS in front of SeS. ses.socket has its own address."
        print variable "=127.0.0.1"
    } else
        print "#" variable "=" value
    variable = ""
}
