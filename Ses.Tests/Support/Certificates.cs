using System.Net;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Ses.Tests.Support;

/// <summary>
/// The kinds of key that certificates are made for; the short one has 1,024 bits, and no client knows the
/// odd curve, secp256k1.
/// </summary>
public enum KeyKind { P256, Rsa, ShortRsa, OddCurve }

/// <summary>
/// What a certificate says that it is for (RFC 5280, 4.2.1.12); a broken one says so in no way that parses.
/// </summary>
internal enum Purpose { Server, Client, Any, Broken }

/// <summary>A certificate and its key in PEM.</summary>
/// <param name="Certificate">The certificate, then the intermediate ones, the root left out.</param>
internal sealed record Identity(string Certificate, string Key)
{
    /// <summary>Its own certificate with the key, as a client presents it.</summary>
    public X509Certificate2 Load() => X509Certificate2.CreateFromPem(Certificate, Key);

    /// <summary>The key as PKCS #8 with a passphrase.</summary>
    public string EncryptedKey()
    {
        using var key = ECDsa.Create();
        key.ImportFromPem(Key);
        return key.ExportEncryptedPkcs8PrivateKeyPem("passphrase",
            new PbeParameters(PbeEncryptionAlgorithm.Aes128Cbc, HashAlgorithmName.SHA256, 1000));
    }

    public string Thumbprint
    {
        get
        {
            using var certificate = X509Certificate2.CreateFromPem(Certificate);
            return certificate.Thumbprint;
        }
    }

    /// <summary>Writes <c>NAME.pem</c> and <c>NAME.key</c>; not at once, as an administrator does.</summary>
    /// <returns>The two paths.</returns>
    public (string Certificate, string Key) Write(string dir, string name)
    {
        var (certificate, key) = (Path.Combine(dir, name + ".pem"), Path.Combine(dir, name + ".key"));
        File.WriteAllText(certificate, Certificate);
        File.WriteAllText(key, Key);
        return (certificate, key);
    }
}

/// <summary>A CA of a test: a root, or an intermediate one that a root has signed.</summary>
/// <remarks>Safe for any thread. What it issues is valid now, unless times are given.</remarks>
internal sealed class Authority
{
    private static readonly TimeSpan Life = TimeSpan.FromDays(3650);

    private readonly ECDsa _key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
    private readonly X500DistinguishedName _name;
    private readonly string _chain;
    private readonly Lock _gate = new();

    private Authority(string name, Authority? issuer)
    {
        _name = new X500DistinguishedName($"CN={name}");
        var request = new CertificateRequest(_name, _key, HashAlgorithmName.SHA256);
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(true, false, 0, true));
        request.CertificateExtensions.Add(new X509KeyUsageExtension(X509KeyUsageFlags.KeyCertSign, true));
        request.CertificateExtensions.Add(
            new X509SubjectKeyIdentifierExtension(request.PublicKey, critical: false));
        var (begins, ends) = (DateTimeOffset.UtcNow - Life, DateTimeOffset.UtcNow + Life);
        Pem = (issuer ?? this).Sign(request, begins, ends);
        _chain = issuer == null ? "" : Pem + "\n" + issuer._chain;
    }

    /// <summary>Its certificate, as those who trust it are given it.</summary>
    public string Pem { get; }

    public static Authority Root(string name = "Test Root") => new(name, null);

    public Authority Intermediate(string name = "Test Intermediate") => new(name, this);

    /// <summary>A certificate for localhost and 127.0.0.1, of a year, unless other is asked for.</summary>
    /// <param name="hasHosts">False: there is no subjectAltName.</param>
    public Identity Issue(
        string name = "localhost", Purpose purpose = Purpose.Server, KeyKind kind = KeyKind.P256,
        DateTimeOffset? begins = null, DateTimeOffset? ends = null, bool hasHosts = true)
    {
        using AsymmetricAlgorithm key = kind switch
        {
            KeyKind.Rsa => RSA.Create(2048),
            KeyKind.ShortRsa => RSA.Create(1024),
            KeyKind.OddCurve => ECDsa.Create(ECCurve.CreateFromValue("1.3.132.0.10")),
            _ => ECDsa.Create(ECCurve.NamedCurves.nistP256),
        };
        var subject = new X500DistinguishedName($"CN={name}");
        var request = key is RSA rsa
            ? new CertificateRequest(subject, rsa, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1)
            : new CertificateRequest(subject, (ECDsa)key, HashAlgorithmName.SHA256);
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(false, false, 0, true));
        request.CertificateExtensions.Add(
            new X509KeyUsageExtension(X509KeyUsageFlags.DigitalSignature, critical: true));
        if (purpose == Purpose.Broken)
            request.CertificateExtensions.Add(new X509Extension("2.5.29.37", [5, 0], critical: false));
        else if (purpose != Purpose.Any)
            request.CertificateExtensions.Add(new X509EnhancedKeyUsageExtension(
                [new Oid(purpose == Purpose.Server ? "1.3.6.1.5.5.7.3.1" : "1.3.6.1.5.5.7.3.2")], false));
        if (hasHosts)
        {
            var hosts = new SubjectAlternativeNameBuilder();
            hosts.AddDnsName("localhost");
            hosts.AddIpAddress(IPAddress.Loopback);
            request.CertificateExtensions.Add(hosts.Build());
        }
        var now = DateTimeOffset.UtcNow;
        var pem = Sign(request, begins ?? now - TimeSpan.FromDays(1), ends ?? now + TimeSpan.FromDays(365));
        return new Identity(pem + "\n" + _chain, key.ExportPkcs8PrivateKeyPem() + "\n");
    }

    private string Sign(CertificateRequest request, DateTimeOffset begins, DateTimeOffset ends)
    {
        var serial = RandomNumberGenerator.GetBytes(16);
        serial[0] = (byte)((serial[0] & 0x7f) | 1);
        lock (_gate)
        {
            using var made = request.Create(
                _name, X509SignatureGenerator.CreateForECDsa(_key), begins, ends, serial);
            return made.ExportCertificatePem();
        }
    }
}
