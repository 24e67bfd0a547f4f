# Makes /etc/default/ses of what ses --help says: each setting that has a variable, and its default;
# the address alone is set, so that nobody is let in unasked.
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
        print "# As installed, this host alone reaches SeS. Change it knowingly: to let others in, give an address, or"
        print "# none for all, and set with it who may ask (OXSES_AUTHMODE and what it needs) and TLS (OXSES_TLS_CERT"
        print "# and OXSES_TLS_KEY), or leave it and put a proxy with TLS before SeS. ses.socket has its own address."
        print variable "=127.0.0.1"
    } else
        print "#" variable "=" value
    variable = ""
}
