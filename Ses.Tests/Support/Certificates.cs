using System.Net;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Ses.Tests.Support;

/// <summary>A certificate and its key, as PEM files.</summary>
internal sealed record PemPair(string Certificate, string Key);

/// <summary>A certificate authority in a temporary folder, and what it issues, as PEM files.</summary>
internal sealed class Certificates : IDisposable
{
    public const string ForServers = "1.3.6.1.5.5.7.3.1", ForClients = "1.3.6.1.5.5.7.3.2";

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-certificates-").FullName;
    private readonly X509Certificate2 _root;
    private int _serial;

    public Certificates()
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = new CertificateRequest("CN=Root of the tests", key, HashAlgorithmName.SHA256);
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(true, false, 0, true));
        _root = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddYears(-1), DateTimeOffset.UtcNow.AddYears(1));
        Authority = Write("ca.pem", _root.ExportCertificatePem());
    }

    /// <summary>PEM file of the root.</summary>
    public string Authority { get; }

    public X509Certificate2 Root => _root;

    /// <summary>Issues a certificate for localhost, valid from so many days ago to so many ahead.</summary>
    /// <param name="purpose">Null: for any.</param>
    public PemPair Issue(
        string name, string? purpose = ForServers, int fromDays = -1, int toDays = 90, bool namesHosts = true,
        bool isRsa = false)
    {
        using AsymmetricAlgorithm key = isRsa ? RSA.Create(2048) : ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = key is RSA rsa
            ? new CertificateRequest($"CN={name}", rsa, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1)
            : new CertificateRequest($"CN={name}", (ECDsa)key, HashAlgorithmName.SHA256);
        if (purpose != null)
            request.CertificateExtensions.Add(new X509EnhancedKeyUsageExtension([new Oid(purpose)], false));
        if (namesHosts)
        {
            var names = new SubjectAlternativeNameBuilder();
            names.AddDnsName("localhost");
            names.AddIpAddress(IPAddress.Loopback);
            request.CertificateExtensions.Add(names.Build());
        }
        using var certificate = request.Create(_root.SubjectName, X509SignatureGenerator.CreateForECDsa(
            _root.GetECDsaPrivateKey()!), DateTimeOffset.UtcNow.AddDays(fromDays),
            DateTimeOffset.UtcNow.AddDays(toDays), BitConverter.GetBytes(++_serial));
        return new PemPair(Write($"{name}-{_serial}.pem", certificate.ExportCertificatePem()),
            Write($"{name}-{_serial}.key", key.ExportPkcs8PrivateKeyPem()));
    }

    public string Write(string name, string content)
    {
        var path = Path.Combine(_dir, name);
        File.WriteAllText(path, content + "\n");
        return path;
    }

    public void Dispose()
    {
        _root.Dispose();
        Directory.Delete(_dir, recursive: true);
    }
}
