-- mark -> 1 while it is set, and extends one that lasts a minute; else 0
local key, mark = p .. 'migrating', redis.call('GET', p .. 'migrating')
if mark == 'out ' .. ARGV[1] then
    redis.call('PEXPIRE', key, 60000)
    return 1
end
return mark == 'in ' .. ARGV[1] and 1 or 0
